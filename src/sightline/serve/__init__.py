"""An HTTP server for a trained model, with the predictions of `sightline predict`."""
