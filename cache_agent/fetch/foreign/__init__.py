"""Gets images that others made into the store, layer by layer: each is verified whole before anything is believed."""
