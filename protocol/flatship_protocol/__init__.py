"""What the two ends of Flatship agree on; SPEC.md beside this package is normative."""
