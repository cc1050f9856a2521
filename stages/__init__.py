"""One file a stage of `dvc.yaml`: read params, call one verb of clip_core, write."""
