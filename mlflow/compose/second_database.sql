-- Users and their rights, beside the runs.
create database mlflow_auth owner mlflow;
