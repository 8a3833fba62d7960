import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { ERRORS, EXIT } from '../base/errors.ts';

const file = new URL('../../docs/errors.md', import.meta.url);

const EXIT_MEANINGS: Readonly<Record<keyof typeof EXIT, string>> = {
  ok: 'done',
  internal: 'a defect, or an extension failed',
  usage: 'wrong arguments or configuration',
  invalid: 'an input is not acceptable as it is',
  refused: 'not allowed, or proofs not accepted',
  notFound: 'no such thing',
  conflict: 'the present state is in the way',
  integrity: 'something was altered, damaged or expired: do not use it',
  unavailable: 'not possible now or on this machine',
  program: 'the program that was run failed',
  storage: 'the disk is full, read-only or broken',
  interrupted: 'Ctrl-C, or the caller went away',
};

function page(): string {
  const exits = Object.entries(EXIT).map(
    ([name, status]) => `| ${status} | ${EXIT_MEANINGS[name as keyof typeof EXIT]} |`,
  );
  const rows = Object.entries(ERRORS).map(
    ([code, { status, exit, retry, when }]) =>
      `| \`${code}\` | ${status} | ${exit} | ${retry ? 'yes' : 'no'} | ${when} |`,
  );
  return `# Errors

Every refusal has a code that never changes its meaning. Programs decide by the code, never by the message.
This page is generated from \`src/base/errors.ts\`; a test keeps it current.

A command prints the message and, if there is one, a hint on standard error; with \`--json\` it prints \`{"error": {"code", "message", "hint", "details"}}\`
on standard output. The HTTP API answers a problem document (RFC 9457) with the same members.

## Exit status of the command line

| Status | Meaning |
|---|---|
${exits.join('\n')}

## Codes

"Again" says whether the same call may succeed later without any change.

| Code | HTTP | Exit | Again | When |
|---|---|---|---|---|
${rows.join('\n')}
`;
}

test('docs/errors.md lists every code with its statuses', async () => {
  if (process.env['UPDATE_DOCS'] === '1') await writeFile(file, page());
  assert.equal(await readFile(file, 'utf8'), page(), 'run the tests once with UPDATE_DOCS=1');
});
