"""Evidence: the statistics that verdicts rest on; keys, commitments and signed statements join them here."""
