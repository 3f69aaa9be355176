"""The truth about divergences, for the benchmark and for the tests.

`doubles` is arithmetic of some 31 digits on NumPy alone, `rows` and `losses` are the divergences in
it. `exact` is mpmath's, with as many digits as it takes; the tests hold the others against it.
All take the exact values of the arrays that they are given.
"""
