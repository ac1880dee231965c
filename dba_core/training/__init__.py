"""dba_core/training"""
