"""Can a file break a reader?  Coverage-guided fuzzing of all of them by atheris.

A reader may refuse a file by an error of kldiv's own, and nothing else: no other exception, no
hang, no more memory than its budget.
"""
