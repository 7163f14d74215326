"""`haclusterctl`: parse, ask the daemon, print. No decisions (DESIGN sections 5 and 8).

main     the command line and its exit codes
client   one question to the daemon's socket
remote   commands that ask the daemon
local    commands that need no daemon: config, keys
doctor   is this host fit: checks, each with its fix
show     tables for people
"""
