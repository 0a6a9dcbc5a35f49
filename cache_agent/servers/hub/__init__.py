"""The Hub endpoint: what programs ask of the Hugging Face Hub, answered from this node (`HF_ENDPOINT`)."""
