"""Every setting of the server, as one table. Pure data; `config.py` reads it, docs/reference/settings.md is made of it.

To add one: a row here, a field of the same name in `config.Settings`, then `python -m cove.server.config` to renew the
page. To remove one: move its row to `graveyard.py`.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Setting(NamedTuple):
    """`name` is the field, the TOML key and, as COVE_NAME, the environment variable. `default` is its text form."""

    name: str
    default: str
    unit: str
    help: str

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"COVE_{self.name.upper()}"


TABLE: Final = (
    Setting("data_dir", "/var/lib/cove", "path", "Where everything that must last is kept. Two servers have two."),
    Setting("run_dir", "/run/cove", "path", "Sockets, locks and claims; machine-wide, gone at a reboot."),
    Setting("host", "127.0.0.1", "address", "Where to listen. Anything but this machine needs TLS or `behind_proxy`."),
    Setting("port", "8080", "port", "TCP port."),
    Setting("ssh_host", "", "address", "Where to listen for SSH; empty: as `host`. SSH needs no TLS and no proxy."),
    Setting("ssh_port", "2222", "port", "TCP port for SSH; 0: none. One that is in use is warned of, no more."),
    Setting("tls_cert", "", "path", "Certificate chain in PEM form; with `tls_key` the server speaks HTTPS."),
    Setting("tls_key", "", "path", "Private key in PEM form."),
    Setting("behind_proxy", "0", "0 or 1", "A proxy on the way does TLS, so listening on other addresses is fine."),
    Setting(
        "public_domain",
        "localhost",
        "name",
        "Under which name's subdomains the ports of sandboxes are reached: `PORT-SANDBOX.name`. With `:port` where "
        "clients use another port than this server's.",
    ),
    Setting(
        "proxy_timeout_s",
        "120",
        "s",
        "How long a program in a sandbox may take to begin its answer to a proxied request; then it is 504.",
    ),
    Setting(
        "region",
        "local",
        "name",
        "Where this server is, in a word of yours: it stands in keys and answers of the isorun API.",
    ),
    Setting(
        "bootstrap_keys",
        "",
        "list",
        "Keys of any form to accept with full rights in the default project. Adds, never removes.",
    ),
    Setting("drivers", "runc,crun,gvisor", "list", "Isolation drivers to load; one that cannot run here is told so."),
    Setting("default_driver", "", "name", "The driver of a sandbox that names none; empty: the first of `drivers`."),
    Setting(
        "untrusted_drivers",
        "",
        "list",
        "Drivers on which images may run that were not made by `cove setup` (pulled, built, imported); empty: any.",
    ),
    Setting(
        "images",
        "base,python,node",
        "list",
        "Images that `cove setup` makes. Without the first it fails; of the others it says why one could not be made.",
    ),
    Setting(
        "extra_ca",
        "",
        "path",
        "PEM file, or directory of `.pem` and `.crt` files, of CA certificates that images trust besides their own.",
    ),
    Setting(
        "default_registry", "docker.io", "host", "The registry of image names that have none, such as `alpine:3.20`."
    ),
    Setting(
        "registries",
        "*",
        "list",
        "Registries that images may come from: `host`, `host:port`, `*.example.com`, or `*` for any. Addresses that "
        "are not public are refused, unless their host is listed by name.",
    ),
    Setting(
        "insecure_registries",
        "",
        "list",
        "Registries that may be spoken to without TLS, or with a certificate nobody checks: `host` or `host:port`.",
    ),
    Setting(
        "image_aliases",
        "python:*=python,node:*=node,debian:*=base,ubuntu:*=base",
        "list",
        "`PATTERN=IMAGE`: built-in images that stand in while a registry cannot be reached; `off`: none.",
    ),
    Setting("image_max_mib", "20480", "MiB", "How much an image may take on the disk."),
    Setting("image_max_files", "2000000", "count", "How many files an image may have."),
    Setting("image_max_ratio", "100", "factor", "How many bytes a layer may unpack to per packed byte."),
    Setting("max_pulls", "3", "count", "Pulls at a time; further ones wait."),
    Setting("pull_timeout_s", "1800", "s", "How long a pull may take in all."),
    Setting("pull_stall_s", "60", "s", "How long a registry may send nothing before a pull is given up."),
    Setting(
        "pool_size", "64", "count", "Ready sandboxes to keep per image of `pool_images`; fewer where memory is short."
    ),
    Setting("pool_images", "base", "list", "Images of which ready sandboxes are kept."),
    Setting(
        "pool_drivers",
        "",
        "list",
        "Drivers besides the default one of which ready sandboxes are kept: `name`, or `name=size` (`gvisor=8`).",
    ),
    Setting("overcommit", "10", "factor", "The sum of all memory limits may be so many times the machine's memory."),
    Setting("keep_free_mib", "0", "MiB", "No create while less memory is free. 0: a tenth of it, 512 MiB or more."),
    Setting(
        "keep_free_disk_mib",
        "0",
        "MiB",
        "No create while the storage pool or its disk has less free. 0: a twentieth, at most 1024.",
    ),
    Setting("max_sandboxes", "1000", "count", "Sandboxes at a time."),
    Setting("max_creates", "128", "count", "Creates in progress at a time; one more is answered 503."),
    Setting(
        "timeout_counts",
        "always",
        "word",
        "When a sandbox's timeout_s passes, unless it says so itself: always, or running (not while it is paused or "
        "hibernated).",
    ),
    Setting("history_days", "30", "days", "How long ended sandboxes are shown."),
    Setting(
        "price_vcpu_hour", "0.025", "money", "What one allocated vCPU costs per hour, in the currency of your bills."
    ),
    Setting("price_gib_hour", "0.015", "money", "What one allocated GiB of memory costs per hour."),
    Setting("price_traffic_gib", "0", "money", "What one GiB over a sandbox's network costs, either way."),
    Setting(
        "bill_paused", "memory", "word", "What a paused sandbox is billed for: memory (it keeps it), nothing, or all."
    ),
    Setting(
        "usage_interval_s", "10", "s", "How often sandboxes are measured, usage is written and budgets are enforced."
    ),
    Setting("usage_days", "400", "days", "How long usage and bills are kept; its hours become days after a week."),
    Setting("requests_per_minute", "0", "count", "Requests of each key that has no limit of its own; 0: any number."),
    Setting("request_burst", "0", "count", "How many of them may come at once; 0: all of a minute."),
    Setting(
        "failed_logins_per_minute",
        "60",
        "count",
        "Requests without a valid key, and SSH logins, of one address (IPv6: its /64); 0: any number.",
    ),
    Setting(
        "template_ready",
        "16",
        "count",
        "How many copies of snapshots may be kept ready, for all templates together; each takes its snapshot's memory.",
    ),
    Setting(
        "execution_networks",
        "none,filtered,open",
        "list",
        "Which networks an execution (`/isol8/execute`) may ask for; `open` is what its clients call host.",
    ),
    Setting("execution_images", "", "list of patterns", "Images that an execution may name (`*` stands for any text)."),
    Setting("execution_cpus", "0", "cores", "Most that an execution gets, whatever it asks for; 0: as any sandbox."),
    Setting("execution_memory_mib", "0", "MiB", "The same of memory."),
    Setting("execution_pids", "0", "count", "The same of processes."),
    Setting("execution_disk_mib", "0", "MiB", "The same of /sandbox, and of /tmp."),
    Setting("execution_timeout_s", "3600", "seconds", "The longest that each step of an execution may take."),
    Setting("execution_output_mib", "10", "MiB", "Most of each output stream that a buffered execution returns."),
    Setting("execution_at_once", "64", "count", "Executions of a project at a time; one more is refused (429)."),
    Setting(
        "execution_idle_s", "3600", "seconds", "After how long without an execution a session is ended; 0: it is not."
    ),
    Setting(
        "execution_ready",
        "24",
        "count",
        "Ready sandboxes to keep for executions, per image that they use, from the first use on; `pool_images` has "
        "them from the start.",
    ),
    Setting(
        "remote_code_hosts",
        "",
        "list of patterns",
        "Hosts from which executions may have their program fetched (`codeUrl`); empty: from nowhere.",
    ),
    Setting("remote_code_plain", "0", "0 or 1", "Whether they may over http:// too, where the caller agrees."),
    Setting("remote_code_hash", "0", "0 or 1", "Whether the caller must say the SHA-256 of what is fetched."),
    Setting("remote_code_mib", "10", "MiB", "The largest program that is fetched."),
    Setting("webhook_plain", "0", "0 or 1", "Whether webhooks may go to http:// too, where anybody on the way reads."),
    Setting("audit_retention", "400", "days", "How long lines of the audit trail are kept."),
    Setting("quota", "auto", "word", "Storage of what sandboxes write: auto, btrfs, ext4 or tmpfs."),
    Setting(
        "degrade",
        "",
        "list",
        "What to do without on a machine that lacks it, instead of refusing to start: `shared` (no idmapped mounts, "
        "kernel before 5.19: all sandboxes share one range of ids), `host` (no user namespaces: root in a sandbox has "
        "the machine's uid 0). Each sandbox's view says so.",
    ),
    Setting(
        "pool_bytes",
        "0",
        "bytes",
        "Size of the storage pool of what sandboxes write. 0: three quarters of the free space below `data_dir`.",
    ),
    Setting(
        "import_memory",
        "0",
        "0 or 1",
        "Whether snapshots from files that another server made bring their memory. A forged one acts as root of this "
        "machine: only for files from servers that are trusted as this one is. 0: such files bring the files alone.",
    ),
    Setting("network", "1", "0 or 1", "Whether sandboxes may be connected at all; each starts without, unless asked."),
    Setting(
        "network_range",
        "10.213.0.0/16",
        "CIDR",
        "The addresses of sandboxes, one each; seen by nobody outside, so two servers may use the same.",
    ),
    Setting(
        "network_outside",
        "",
        "path",
        "Network namespace by which sandboxes' packets leave, such as /run/netns/vpn; empty: the server's own.",
    ),
    Setting(
        "network_resolvers",
        "",
        "list",
        "Name servers to ask for sandboxes: `address` or `address:port`; empty: those of the outside's resolv.conf.",
    ),
    Setting(
        "network_opened_ranges",
        "",
        "list",
        "What sandboxes may reach of what is closed to all (private ranges, metadata, this machine), if their policy "
        "allows it too: `CIDR` or `CIDR:port`. A metadata address or one of this machine only if listed by itself.",
    ),
    Setting(
        "forward_host",
        "127.0.0.1",
        "address",
        "Where the host listens for sandboxes' ports (raw TCP, no key, no TLS: whoever reaches it gets in).",
    ),
    Setting(
        "forward_ports",
        "20000-20999",
        "ports",
        "Ports of the host that may lead to sandboxes' ports, first and last; empty: none is given out.",
    ),
    Setting("json_body_mib", "2", "MiB", "Largest JSON body. Uploads are not limited by it."),
    Setting("max_connections", "4096", "count", "Open connections; a further one is answered 503 and closed."),
    Setting("debian_mirror", "", "URL", "Where `cove setup` gets packages; empty: as the machine's own apt does."),
    Setting("log_format", "line", "word", "line (key=value) or json."),
    Setting("log_level", "info", "word", "debug, info, warning or error."),
    Setting(
        "log_requests", "0", "0 or 1", "A log line for every request, not only for those that fail through our fault."
    ),
    Setting(
        "otlp_endpoint",
        "",
        "URL",
        "Where traces go, by OpenTelemetry's OTLP over HTTP (`/v1/traces` is added); empty: nowhere. Needs "
        "`pip install 'cove[otel]'`; a token for it: OTEL_EXPORTER_OTLP_HEADERS.",
    ),
    Setting("trace_ratio", "1", "0 to 1", "Which share of the requests that no caller traces already is traced."),
)

ELSEWHERE: Final = {
    "COVE_CONFIG": "the settings file, instead of DATA_DIR/cove.toml and /etc/cove/cove.toml",
    "COVE_URL": "client: the server to use",
    "COVE_API_KEY": "client: the key to send",
}
"""Variables of ours that are no settings of the server."""
