"""The report: one page of HTML that shows a run and needs nothing else."""
