import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test asks a hub
