"""A trained model for other programs: config -> run -> graphs or hugging_face."""
