"""SNP-S3: video-text pre-training with one shared BERT, and its downstream tasks (Wang et al. 2023)."""
