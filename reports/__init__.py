"""Records to tables, figures and Markdown. A pure function of the records: no torch, no Avalanche."""
