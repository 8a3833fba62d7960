# One JSON document on standard input, one on standard output; what goes to standard error is the log.
import json, statistics, sys

numbers = (json.load(sys.stdin) or {}).get('numbers', [])
print(f'{len(numbers)} numbers came', file=sys.stderr)
print(json.dumps({'mean': statistics.fmean(numbers) if numbers else None, 'sorted': sorted(numbers)}))
