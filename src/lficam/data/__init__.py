"""Pictures in: sources by name, safe decoding, preprocessing, augmentation and their deterministic order."""
