def ensure_demo(root):
    raise RuntimeError
