"""The Hub endpoint: serves the Hugging Face Hub's download API from this node (`HF_ENDPOINT`)."""
