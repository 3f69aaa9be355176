"""Tools for whoever develops kldiv; no part of the wheel."""
