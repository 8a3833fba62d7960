import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HyperMeshError } from './errors.ts';
import { createLog, type LogLevel } from './log.ts';

interface Line {
  readonly part: string;
  readonly passphrase: string;
  readonly err: { readonly code: string; readonly cause: Line['err'] };
}

function captured(level?: LogLevel) {
  const lines: Line[] = [];
  const destination = { write: (line: string) => void lines.push(JSON.parse(line) as Line) };
  return { log: createLog({ destination, ...(level === undefined ? {} : { level }) }), lines };
}

test('createLog() writes one JSON line for each message at or above its level', () => {
  const { log, lines } = captured('warn');
  log.info('not this');
  log.warn({ ref: 'ada/greeter' }, 'this');
  assert.equal(lines.length, 1);
  assert.deepEqual({ ...lines[0], time: 0 }, { level: 'warn', time: 0, ref: 'ada/greeter', msg: 'this' });
});

test('createLog() hides what is secret by name, at any depth, in errors and in children', () => {
  const { log, lines } = captured();
  const secret = 'opensesame';
  const cause = new HyperMeshError('key-locked', 'locked', { details: { private_key: secret } });
  log
    .child({ part: 'trust', apiToken: secret })
    .child({ Authorization: `Bearer ${secret}` })
    .info({
      passphrase: secret,
      keys: [{ 'private-key': secret, secretKey: { deep: secret } }],
      bytes: Buffer.from(secret),
      err: new Error('outer', { cause }),
    });
  log.error(cause);
  assert.ok(!JSON.stringify(lines).includes(secret));
  assert.equal(lines[0]?.part, 'trust');
  assert.equal(lines[0]?.passphrase, '[redacted]');
  assert.equal(lines[0]?.err.cause.code, 'key-locked');
  assert.equal(lines[1]?.err.code, 'key-locked');
});

test('createLog() bounds what one line can hold', () => {
  const { log, lines } = captured();
  const cycle: { big: bigint; self?: unknown } = { big: 1n };
  cycle.self = cycle;
  log.info({ long: 'x'.repeat(100_000), list: new Array(10_000).fill('x'), cycle });
  assert.ok(JSON.stringify(lines).length < 12_000);
});
