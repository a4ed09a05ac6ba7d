"""Converts a source of query-document pairs: python -m train.data --source FOLDER_OR_HUB_ID --name NAME --out FOLDER"""

from train.data.dataset import main

if __name__ == "__main__":
    main()
