module cove/agent

go 1.24
