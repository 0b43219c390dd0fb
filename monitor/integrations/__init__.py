"""The monitor in training frameworks, each in a module of its own that is imported only when it is used.

::

    import monitor.integrations.transformers      # TrainingArguments(report_to="monitor")
    from monitor.integrations.lightning import MonitorCallback
"""
