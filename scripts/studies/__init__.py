"""Programs behind the findings in the documentation."""
