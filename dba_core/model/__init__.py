"""dba_core/model"""
