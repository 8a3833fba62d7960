import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { COMMANDS, GROUPS } from './commands.ts';

const file = new URL('../../docs/cli.md', import.meta.url);

function page(): string {
  const sections = COMMANDS.map(({ name, heading, args, summary, options = [], example }) => {
    const rows = options.map(([flags, says]) => `| \`${flags}\` | ${says} |`);
    const table = rows.length === 0 ? '' : `\n| Option | Meaning |\n|---|---|\n${rows.join('\n')}\n`;
    const lines = new Set([`hypermesh ${name}${args === undefined ? '' : ` ${args}`}`, example]);
    return `${heading === undefined ? '' : `## ${heading}\n\n`}### ${name}\n\n${summary}\n\n\`\`\`\n${[...lines].join('\n')}\n\`\`\`\n${table}`;
  });
  const groups = Object.entries(GROUPS).map(([name, says]) => `- \`hypermesh ${name}\`: ${says}`);
  return `# The command line

\`hypermesh COMMAND\`; \`hypermesh COMMAND --help\` explains one. This page is generated from \`src/cli/commands.ts\`; a test keeps it current.

A REF is \`scope/name\` or \`scope/name@range\`, with a range of semantic versions such as \`^1.2.0\`.

Every command takes \`--home DIR\`, \`--passphrase-file FILE\`, \`--json\` (exactly one JSON document on standard output; logs and progress go to standard error) and
\`--verbose\` (progress as lines). Progress is drawn when standard error is a terminal; elsewhere a step that takes long says so once. Ctrl-C cancels and leaves nothing half-done.

The exit status tells the class of a failure: [errors.md](errors.md). With \`--json\` a failure is \`{"error": {"code", "message", "hint", "details"}}\`.
\`run\` exits with 9 when the program fails.

A bundle (\`hypermesh bundle REF FILE\`) is all that \`verify FILE --offline\` needs: no node, no home. Pin the network with \`--genesis\`.

## Groups

${groups.join('\n')}

${sections.join('\n')}`;
}

test('new says which templates there are', async () => {
  const names = await readdir(new URL('../../templates/', import.meta.url));
  const { summary } = COMMANDS.find(({ name }) => name === 'new')!;
  for (const name of names) assert.match(summary, new RegExp(`\\b${name}\\b`));
});

test('docs/cli.md lists every command', async () => {
  if (process.env['UPDATE_DOCS'] === '1') await writeFile(file, page());
  assert.equal(await readFile(file, 'utf8'), page(), 'run the tests once with UPDATE_DOCS=1');
});
