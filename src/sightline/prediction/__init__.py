"""From pictures to answers, whatever the model is stored as."""
