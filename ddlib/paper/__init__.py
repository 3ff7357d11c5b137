"""From rows to print: tables, figures, claims, notebooks and their checks."""
