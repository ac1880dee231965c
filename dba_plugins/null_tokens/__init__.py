"""dba_plugins/null_tokens"""
