#!/usr/bin/env bash
# Starts the demo on free ports and checks from outside what a firewall, a dashboard and a person would take from it:
#     bash tests/feeds.sh target/release/greenlane
# Needs curl, jq, dig, nft and promtool. Ends only the process that it started.
set -euo pipefail
cd "$(dirname "$0")/.."
greenlane=$1
work=$(mktemp -d)
"$greenlane" demo --dns 127.0.0.1:0 --web 127.0.0.1:0 >"$work/show" 2>"$work/log" &
pid=$!
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; rm -rf "$work"' EXIT

fail() { echo "feeds: $*" >&2; tail -n 20 "$work/show" "$work/log" >&2; exit 1; }

for _ in $(seq 300); do
  grep -q 'Serving until Ctrl-C' "$work/show" && break
  kill -0 "$pid" 2>/dev/null || fail "the demo ended"
  sleep 0.1
done
grep -q 'Serving until Ctrl-C' "$work/show" || fail "the demo did not get to serving"
web=$(grep -o 'http://127.0.0.1:[0-9]*' "$work/show" | head -n 1)
dns=$(grep -o 'dig @127.0.0.1 -p [0-9]*' "$work/show" | head -n 1 | grep -o '[0-9]*$')

# A person: the tag shows in plain dig, and only under a listed name.
dig +tries=1 +time=3 @127.0.0.1 -p "$dns" zoom.us A >"$work/dig"
grep -q 'EDE: 0 (Other): (bypass zoom (zoom.us))' "$work/dig" || { cat "$work/dig" >&2; fail "dig shows no tag"; }
dig +tries=1 +time=3 @127.0.0.1 -p "$dns" www.example.com A | grep -q 'EDE' && fail "an ordinary name is tagged"

# A firewall: every form is there, agrees on the count, and loads.
for ending in txt json csv nft ipset rsc; do
  curl -fsS -o "$work/prefixes.$ending" "$web/prefixes.$ending" || fail "/prefixes.$ending"
done
lines=$(wc -l <"$work/prefixes.txt")
[ "$lines" -ge 35 ] || fail "/prefixes.txt has $lines lines only"
LC_ALL=C grep -qvE '^[0-9a-f.:]+/[0-9]+$' "$work/prefixes.txt" && fail "/prefixes.txt holds something else than prefixes"
[ "$(jq '.prefixes | length' "$work/prefixes.json")" = "$lines" ] || fail "/prefixes.json has another count"
if [ "$(id -u)" = 0 ]; then
  nft -c -f "$work/prefixes.nft" || fail "nft refuses /prefixes.nft"
fi
for product in paloalto fortigate opnsense pfsense checkpoint cisco mikrotik squid-ip squid-domains; do
  curl -fsS -H 'Authorization: Bearer stray' -o "$work/feed" "$web/feeds/$product.txt" || fail "/feeds/$product.txt"
  LC_ALL=C grep -qv '^[ -~]*$' "$work/feed" && fail "/feeds/$product.txt holds more than plain lines"
  [ -s "$work/feed" ] || fail "/feeds/$product.txt is empty"
done
etag=$(curl -fsSI "$web/prefixes.txt" | tr -d '\r' | sed -n 's/^[Ee][Tt][Aa][Gg]: //p')
code=$(curl -sS -o /dev/null -w '%{http_code}' -H "If-None-Match: $etag" "$web/prefixes.txt")
[ "$code" = 304 ] || fail "If-None-Match $etag gave $code"

# A dashboard: names and help pass, and the board and the alerts ask for metrics that are there.
curl -fsS "$web/metrics" >"$work/metrics"
promtool check metrics <"$work/metrics" || fail "promtool refuses /metrics"
promtool check rules deploy/prometheus/alerts.yml
promtool test rules deploy/prometheus/alerts_test.yml
jq -e . deploy/grafana/greenlane.json >/dev/null || fail "the board is no JSON"
# Metrics of sinks, of a cluster, of nftables and of greenlane sync are there only where those run: they must at least be ours.
for metric in $(cat deploy/grafana/greenlane.json deploy/prometheus/alerts.yml | grep -oE 'greenlane_[a-z_]+' | sort -u); do
  case $metric in
    greenlane_learn_sink_* | greenlane_store_* | greenlane_cluster_* | greenlane_nftables_* | greenlane_sync_*)
      grep -rqF "\"${metric%_bucket}\"" src/learn src/store src/cluster src/export || fail "board or alerts ask for $metric, which nothing has"
      continue ;;
  esac
  grep -qE "^# TYPE (${metric}|${metric%_bucket}|${metric%_sum}|${metric%_count}) " "$work/metrics" ||
    fail "board or alerts ask for $metric, which /metrics does not have"
done
echo "feeds: $lines prefixes in six forms and nine feeds, metrics, board and alerts are fine"
