"""The training pipeline: commands that users run and edit; the folders have the code behind them."""
