"""Run the stages of the notebooks: prepare, index, fine-tune, caption, score, submit; here and on Kaggle."""
