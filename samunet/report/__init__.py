"""``report.html``: one self-contained page about a cross-validation or a prediction."""
