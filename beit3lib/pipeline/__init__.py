"""The five notebook stages as functions, and what they need from the host: settings, manifest, packages, Kaggle."""
