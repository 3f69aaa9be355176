"""Do the tests notice a wrong line?  Mutation testing by a random sample.

Cosmic-ray's operators change one place of the source; the tests of the folder must fail then.  Each
change is made in a temporary copy of the checkout, never in the checkout itself.
"""
