"""The programs behind the findings in docs/."""
