"""dba_plugins/gates"""
