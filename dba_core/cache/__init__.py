"""dba_core/cache"""
