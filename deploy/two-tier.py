#!/usr/bin/env python3
"""Runs the two tiers of compose.yaml without containers, from installed binaries on loopback, and checks the result.

    bash tests/peers/collector.sh ~/.cache/spanring-tools      # and jaeger.sh, prometheus.sh, telemetrygen.sh
    cargo build --release && python3 deploy/two-tier.py

Starts three Spanring replicas, three Collectors with tail sampling (deploy/compose/collector.yaml), Jaeger and Prometheus on
free ports, sends traces whose spans go to all three proxies, and checks:

  - every trace that was kept is complete in Jaeger, and every trace with a failed span was kept
  - no trace came to two Collectors: the sum of the traces that they saw is the number of traces sent
  - each span was delivered once: the sum of the Collectors' span metrics is the number of spans sent
  - Prometheus scrapes three replicas whose fingerprints agree, the ownership of each ring sums to 1, and no alert fires

The exit code is 0 if all checks pass, else 1. All processes are stopped at the end; --keep leaves them running until Enter.
Needs Linux and Python 3, no other packages.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
REPLICAS = 3
# Child spans of each trace that telemetrygen sends, besides the root.
CHILDREN = 4
# Number of requests over which `spanring load` spreads the spans of a trace.
SPREAD = 4
# Seconds that a Collector waits for the spans of a trace (decision_wait).
DECISION_WAIT = 5
# Time limit in seconds; much longer than anything takes.
PATIENCE = 90


def main():
    options = arguments()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="two-tier-")))
        run = Run(options, folder, stack)
        try:
            run.start()
            run.send()
            failures = run.verdict()
        except Trouble as trouble:
            failures = [str(trouble)]
        for failure in failures:
            print(f"FAILED  {failure}")
        if failures:
            run.show_logs()
        print(f"two tiers: {'FAILED' if failures else 'all holds'}")
        if options.keep:
            print(f"\nspanring:   {', '.join(run.admins)}\njaeger API: {run.jaeger}\nprometheus: {run.prometheus}")
            with contextlib.suppress(KeyboardInterrupt):
                input("Enter ends it. ")
    return 1 if failures else 0


def arguments():
    tools = os.environ.get("SPANRING_PEERS") or pathlib.Path.home() / ".cache/spanring-tools"
    spanring = os.environ.get("SPANRING_BIN") or HERE.parent / "target/release/spanring"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path(tools), help="where tests/peers/*.sh installed [%(default)s]")
    parser.add_argument("--spanring", type=pathlib.Path, default=spanring, help="the binary [%(default)s]")
    parser.add_argument("--traces", type=int, default=100, help="failed traces by each proxy [%(default)s]")
    parser.add_argument("--requests", type=int, default=300, help="requests of interleaved traces [%(default)s]")
    parser.add_argument("--keep", action="store_true", help="leave it running until Enter")
    options = parser.parse_args()
    # Make the paths absolute, because processes run in another directory.
    options.peers, options.spanring = options.peers.resolve(), pathlib.Path(options.spanring).resolve()
    return options


class Trouble(Exception):
    """A process did not start, or a condition was not met in time."""


class Run:
    """The processes of a run and their addresses."""

    def __init__(self, options, folder, stack):
        self.options, self.folder, self.stack = options, folder, stack
        self.processes = []
        ports = iter(free_ports(60))
        self.address = lambda: f"127.0.0.1:{next(ports)}"
        self.grpcs = [self.address() for _ in range(REPLICAS)]
        self.admins = [f"http://{self.address()}" for _ in range(REPLICAS)]
        self.collectors = [self.address() for _ in range(REPLICAS)]
        self.telemetry = [self.address() for _ in range(REPLICAS)]
        self.span_metrics = [self.address() for _ in range(REPLICAS)]
        self.jaeger_grpc = self.address()
        self.jaeger = f"http://{self.address()}"
        self.prometheus = f"http://{self.address()}"
        self.sent = self.traces = 0

    # === starting

    def start(self):
        for program in ["otelcol", "telemetrygen", "jaeger", "prometheus"]:
            if not os.access(self.peer(program), os.X_OK):
                raise Trouble(f"{self.peer(program)} is missing; see the head of this file")
        if not os.access(self.options.spanring, os.X_OK):
            raise Trouble(f"{self.options.spanring} is missing; cargo build --release, or --spanring")
        self.start_jaeger()
        for n in range(REPLICAS):
            self.start_collector(n)
        for n in range(REPLICAS):
            self.start_spanring(n)
        self.start_prometheus()

    def start_jaeger(self):
        elsewhere = [
            "collector.otlp.http.host-port", "query.grpc-server.host-port", "collector.grpc-server.host-port",
            "collector.http-server.host-port", "http-server.host-port", "processor.jaeger-compact.server-host-port",
            "processor.jaeger-binary.server-host-port", "processor.zipkin-compact.server-host-port",
        ]  # fmt: skip
        admin = self.address()
        # Jaeger would store its own traces together with the others.
        environment = {"SPAN_STORAGE_TYPE": "memory", "OTEL_TRACES_SAMPLER": "always_off"}
        self.run(
            [
                self.peer("jaeger"), "--log-level=warn", "--query.enable-tracing=false",
                f"--collector.otlp.grpc.host-port={self.jaeger_grpc}", f"--admin.http.host-port={admin}",
                f"--query.http-server.host-port={self.jaeger.removeprefix('http://')}",
                *[f"--{flag}={self.address()}" for flag in elsewhere],
            ],
            environment=environment,
        )  # fmt: skip
        until("Jaeger is ready", lambda: get(f"http://{admin}/") is not None)

    def start_collector(self, n):
        host, port = self.telemetry[n].split(":")
        ports = {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": self.collectors[n]}}}},
            "processors": {"tail_sampling": {"decision_wait": f"{DECISION_WAIT}s"}},
            "connectors": {"spanmetrics": {"metrics_flush_interval": "1s"}},
            "exporters": {
                "otlp": {"endpoint": self.jaeger_grpc},
                "prometheus": {"endpoint": self.span_metrics[n]},
            },
            "service": {
                "telemetry": {
                    "logs": {"level": "warn"},
                    "metrics": {
                        "readers": [{"pull": {"exporter": {"prometheus": {"host": host, "port": int(port)}}}}]
                    },
                }
            },
        }
        # JSON is valid YAML. Settings of the second file override those of the first.
        over = self.write(f"collector-{n}.yaml", json.dumps(ports))
        self.run([self.peer("otelcol"), "--config", HERE / "compose/collector.yaml", "--config", over])
        until(f"Collector {n} is ready", lambda: get(f"http://{self.telemetry[n]}/metrics") is not None)

    def start_spanring(self, n):
        config = {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": self.grpcs[n]}}}},
            "pools": {"tail": {"resolver": {"static": {"hostnames": self.collectors}}}},
            "routes": [{"signals": ["traces"], "routing_key": "trace_id", "pool": "tail"}],
            "admin": {"endpoint": self.admins[n].removeprefix("http://")},
            "shutdown": {"delay": "0s", "timeout": "5s"},
        }
        self.run([self.options.spanring, "run", "--config", self.write(f"spanring-{n}.yaml", json.dumps(config))])
        until(f"Spanring {n} is ready", lambda: get(f"{self.admins[n]}/readyz") is not None)

    def start_prometheus(self):
        admins = [admin.removeprefix("http://") for admin in self.admins]
        jobs = {"spanring": admins, "collector": self.telemetry, "spanmetrics": self.span_metrics}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(HERE / "prometheus/*.rules.yaml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": targets}]} for job, targets in jobs.items()
            ],
        }
        self.run([
            self.peer("prometheus"), f"--config.file={self.write('prometheus.yaml', json.dumps(config))}",
            f"--storage.tsdb.path={self.folder / 'prometheus'}", "--log.level=warn",
            f"--web.listen-address={self.prometheus.removeprefix('http://')}",
        ])  # fmt: skip
        until("Prometheus is ready", lambda: get(f"{self.prometheus}/-/ready") is not None)

    # === sending

    def send(self):
        """Sends failed traces to each proxy, good ones to one, and traces whose spans are spread over all proxies."""
        sending = []
        generators = [("failed", "Error", grpc) for grpc in self.grpcs] + [("fine", "Ok", self.grpcs[0])]
        for service, status, grpc in generators:
            sending.append(self.run([
                self.peer("telemetrygen"), "traces", "--otlp-insecure", "--otlp-endpoint", grpc, "--rate", "0",
                "--traces", self.options.traces, "--child-spans", CHILDREN, "--status-code", status,
                "--service", service, "--span-duration", "1ms",
            ]))  # fmt: skip
        self.traces = len(generators) * self.options.traces
        self.sent = self.traces * (1 + CHILDREN)
        endpoints = [part for grpc in self.grpcs for part in ("--endpoint", grpc)]
        # Whole groups of requests, so that every trace is complete when the last request was answered.
        groups = max(1, self.options.requests // SPREAD)
        requests = groups * SPREAD
        load = subprocess.run(
            [
                str(self.options.spanring), "load", "--json", "--retry", "--unique", "--seed", str(time.time_ns()),
                "--requests", str(requests), "--bodies", str(requests), "--rate", "100",
                "--batches-per-trace", str(SPREAD), *endpoints,
            ],
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        if load.returncode != 0:
            raise Trouble(f"spanring load ended with {load.returncode}: {load.stderr}")
        report = json.loads(load.stdout)
        self.sent += report["spans_acknowledged"]
        self.traces += groups * report["traces_per_batch"]
        for process in sending:
            if process.wait(timeout=PATIENCE) != 0:
                raise Trouble(f"{process.name} ended with {process.returncode}")
        print(f"sent    {self.traces:,} traces of {self.sent:,} spans by {REPLICAS} proxies to {REPLICAS} Collectors")

    # === checking

    def verdict(self):
        failures = []

        def holds(what, is_so):
            if is_so:
                print(f"ok      {what}")
            else:
                failures.append(what)

        self.wait_for_decisions()
        kept = self.kept()
        incomplete = [trace for trace, (service, spans) in kept.items() if not is_complete(service, spans)]
        holds(f"{len(kept)} traces in Jaeger, {len(incomplete)} of them incomplete", kept and not incomplete)
        failed, wanted = [service for service, _ in kept.values()].count("failed"), self.options.traces * REPLICAS
        holds(f"{failed} of {wanted} traces with a failed span were kept", failed == wanted)
        across = sum(service not in ("failed", "fine") for service, _ in kept.values())
        holds(f"{across} of the traces came in by several proxies", across > 0)

        # Whether the metric ends with _total depends on how the Collector exports its own metrics.
        name = "otelcol_processor_tail_sampling_new_trace_id_received(_total)?"
        seen = self.eventually(f'sum({{__name__=~"{name}"}})', self.traces)
        holds(f"{seen:,.0f} traces came to Collectors, of {self.traces:,} that were sent", seen == self.traces)
        counted = self.eventually("sum(traces_span_metrics_calls_total)", self.sent)
        holds(f"{counted:,.0f} of {self.sent:,} spans in the Collectors' span metrics", counted == self.sent)
        accepted = self.eventually('sum(spanring_receiver_records_total{outcome="accepted"})', self.sent)
        holds(f"{accepted:,.0f} of {self.sent:,} spans accepted by the proxies", accepted == self.sent)
        up = self.values('up{job="spanring"}')
        holds(f"Prometheus scrapes {up.count(1)} replicas", up == [1] * REPLICAS)
        for name in ["spanring_ring_fingerprint", "spanring_ring_placement_fingerprint"]:
            values = self.values(name)
            known = ", ".join(sorted({f"{int(value):012x}" for value in values}))
            holds(f"{name}: {len(values)} replicas say {known}", len(values) == REPLICAS and len(set(values)) == 1)
        owned = self.values("sum by (instance) (spanring_ring_ownership_ratio)")
        holds(f"ownership sums to {owned}", len(owned) == REPLICAS and all(abs(one - 1) < 1e-6 for one in owned))
        active = self.values('spanring_ring_members{state="active"}')
        holds(f"active members: {active}", active == [REPLICAS] * REPLICAS)
        got = self.values("sum by (instance) (traces_span_metrics_calls_total)")
        holds(f"busiest Collector ÷ mean: {max(got) / (sum(got) / len(got)):.2f}", len(got) == REPLICAS)
        rules = json.loads(get(f"{self.prometheus}/api/v1/rules"))["data"]["groups"]
        alerts = [alert["metric"]["alertname"] for alert in self.query('ALERTS{alertstate="firing"}')]
        holds(f"{sum(len(group['rules']) for group in rules)} rules, firing: {alerts or 'none'}", not alerts)
        return failures

    def wait_for_decisions(self):
        """Waits until the number of spans in Jaeger has not changed for longer than DECISION_WAIT."""
        last, steady, deadline = None, 0, time.monotonic() + PATIENCE
        while steady < DECISION_WAIT + 3 and time.monotonic() < deadline:
            now = sum(len(spans) for _, spans in self.kept().values())
            steady = steady + 1 if now == last and now else 0
            last = now
            time.sleep(1)

    def kept(self):
        """Returns one of the services and the span IDs of each trace in Jaeger."""
        kept = {}
        for service in json.loads(get(f"{self.jaeger}/api/services"))["data"] or []:
            query = urllib.parse.urlencode({"service": service, "limit": 100000})
            for trace in json.loads(get(f"{self.jaeger}/api/traces?{query}"))["data"]:
                kept[trace["traceID"]] = (service, [span["spanID"] for span in trace["spans"]])
        return kept

    def query(self, expression):
        query = urllib.parse.urlencode({"query": expression})
        return json.loads(get(f"{self.prometheus}/api/v1/query?{query}"))["data"]["result"]

    def values(self, expression):
        return [float(sample["value"][1]) for sample in self.query(expression)]

    def eventually(self, expression, wanted):
        """Returns the value of an expression once it is as wanted, or its last value after 15 s."""
        value, deadline = 0.0, time.monotonic() + 15
        while value != wanted and time.monotonic() < deadline:
            value = sum(self.values(expression))
            time.sleep(0.5)
        return value

    # === processes

    def peer(self, name):
        return self.options.peers / "bin" / name

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def run(self, command, environment=None):
        name = pathlib.Path(command[0]).name
        log = self.folder / f"{len(self.processes):02}-{name}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})}, cwd=self.folder,
            )  # fmt: skip
        process.name, process.log = name, log
        self.processes.append(process)
        self.stack.callback(stop, process)
        return process

    def show_logs(self):
        for process in self.processes:
            lines = process.log.read_text(errors="replace").splitlines()[-5:]
            if lines:
                print(f"--- {process.log.name}", *lines, sep="\n")


def is_complete(service, spans):
    """Returns whether every span of the trace is there exactly once."""
    if service in ("failed", "fine"):
        return len(spans) == len(set(spans)) == 1 + CHILDREN
    # The last two bytes of a span ID of `spanring load` are the number of spans of the trace and the index of the span.
    places = [bytes.fromhex(span.zfill(16))[-2:] for span in spans]
    count = places[0][0]
    return sorted(place[1] for place in places) == list(range(count)) and {place[0] for place in places} == {count}


def stop(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def get(url):
    """Returns the text of a page, or None if it cannot be read."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def until(what, is_so):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise Trouble(f"not so after {PATIENCE} s: {what}")
        time.sleep(0.1)


def free_ports(count):
    """Returns ports that are free now. All are bound before the first is released, so they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    # Exit on SIGTERM as after an error, so that the processes are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
