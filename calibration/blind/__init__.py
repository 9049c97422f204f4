"""Blind comparison of two models by people: pairs of crops without names, a page to vote on, counts of the votes."""
