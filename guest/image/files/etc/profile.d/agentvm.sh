# Login shells find the notebook's Python first, as cells do.
PATH=/opt/agentvm/venv/bin:$PATH
export PATH
