"""Preparation of images and videos with captions, questions and answers for SNP-S3."""
