import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import type { Command } from 'commander';
import { createProgram } from '../src/cli/main.ts';
import { type Example, examples } from './examples.ts';
import { freshHome, type Home, PROJECT, SMALL_NETWORK, temporaryFolder } from './system/support.ts';
import { readSources } from './tidy.ts';

const run = promisify(execFile);
const all = examples(PROJECT);
const COMMAND = join(PROJECT, 'bin', 'hypermesh.js');

/** The lines of a shell block that call our command, each as its arguments. */
function calls({ language, text }: Example): readonly string[][] {
  if (language !== 'sh' && language !== '') return [];
  return text
    .replaceAll('\\\n', ' ')
    .split('\n')
    .flatMap((line) => commandsOf(line))
    .filter(([name]) => name === 'hypermesh')
    .map(([, ...args]) => args);
}

/** Splits one line at `&&`, `|`, `;` and redirections into commands of words, as a shell does; a `#` begins a comment. */
function commandsOf(line: string): string[][] {
  const commands: string[][] = [[]];
  for (const [token, word] of line.matchAll(
    /\s+|#.*|&&|[|;>]+|((?:'[^']*'|"[^"]*"|<[^>]*>|[^\s'"#|;>&<]|(?<=\S)#)+)/g,
  )) {
    if (word !== undefined) commands.at(-1)!.push(word.replace(/'([^']*)'|"([^"]*)"/g, '$1$2'));
    else if (/^[&|;>]/.test(token)) commands.push([]);
  }
  return commands;
}

/** Null when the command table accepts the words; otherwise what it says. Nothing is executed. */
async function refusal(args: readonly string[]): Promise<string | null> {
  const program = createProgram();
  let ran = false;
  const disarm = (command: Command): void => {
    if (command.commands.length === 0) {
      command.action(() => {
        ran = true;
      });
    }
    command.configureOutput({ writeOut: () => undefined });
    for (const child of command.commands) disarm(child);
  };
  disarm(program);
  try {
    await program.parseAsync(args, { from: 'user' });
    return ran ? null : 'no command ran';
  } catch (error) {
    return (error as { exitCode?: number }).exitCode === 0 ? null : (error as Error).message;
  }
}

test('every command line in the documentation is one that the command understands', async () => {
  const wrong: string[] = [];
  let seen = 0;
  for (const example of all) {
    for (const args of calls(example)) {
      seen += 1;
      const says = await refusal(args);
      if (says !== null) wrong.push(`${example.page}:${example.line}: hypermesh ${args.join(' ')}: ${says}`);
    }
  }
  assert.deepEqual(wrong, []);
  assert.ok(seen > 50, `only ${seen} command lines were found`);
});

test('a command line that the command does not understand is seen', async () => {
  for (const [line, says] of [
    ['hypermesh publsh ./greeter', /unknown command/],
    ['hypermesh info --bundle ada/greeter', /unknown option/],
    ['npm ci && hypermesh verify # nothing to verify', /missing required argument/],
    [`hypermesh bundle 'ada/greeter' one.file "another file"`, /too many arguments/],
  ] as const) {
    const [args] = calls({ page: 'planted.md', line: 1, language: 'sh', text: `${line}\n` });
    assert.match((await refusal(args!)) ?? 'accepted', says, line);
  }
});

test('every command that a text of the product names is one that the command understands', async () => {
  const wrong: string[] = [];
  const texts = readTexts();
  for (const { path, call } of texts) {
    const says = await refusal(commandsOf(call)[0]!.slice(1));
    // A text may name a command without its arguments, or a group of commands.
    if (says !== null && !/missing required argument|outputHelp/.test(says)) wrong.push(`${path}: ${call}: ${says}`);
  }
  assert.deepEqual(wrong, []);
  assert.ok(texts.length > 5);
});

/** `hypermesh …` between backticks or at the end of a message or hint, and in inline code of the pages. */
function readTexts(): readonly { readonly path: string; readonly call: string }[] {
  const sources = [...readSources(PROJECT, ['src', 'docs', 'templates', 'examples'])];
  return sources
    .filter(([path]) => /\.(ts|md)$/.test(path) && !path.endsWith('.test.ts'))
    .flatMap(([path, source]) => {
      const text = source.replace(/^```[\s\S]*?^```$/gm, '');
      const calls = text.matchAll(/(?<!`)`(hypermesh [a-z][^`\\$]*)\\?`|[a-z]: (hypermesh [a-z][^`'\\$]*)[`'$]/g);
      return [...calls].map((match) => ({ path, call: match[1] ?? match[2]! }));
    });
}

test('the commands of the README do what it says, one after the other', async () => {
  const [block] = all.filter(({ page, text }) => page === 'README.md' && text.includes('hypermesh up'));
  await using fresh = await freshHome();
  // The alias stands for the command of this checkout; everything else runs as it stands.
  const script = block!.text.replace(/^alias .*\n/, `hypermesh() { "$NODE" "$COMMAND" "$@"; }\n`);
  assert.notEqual(script, block!.text);
  const { stdout } = await run('sh', ['-ec', script], {
    cwd: fresh.folder,
    env: {
      PATH: process.env['PATH'],
      HYPERMESH_HOME: fresh.home,
      NODE: process.execPath,
      COMMAND,
    },
  });
  for (const says of [/The node runs/, /Published +hello\/greeter/, /1 of 1 package/, /1 package installed/, /"Ada"/]) {
    assert.match(stdout, says);
  }
  assert.match(stdout, /Verified[\s\S]*Stopped the node/);
});

test('the two machines of the README become one network', async () => {
  const [block] = all.filter(({ page, text }) => page === 'README.md' && text.includes('hypermesh network join'));
  await using first = await freshHome();
  await using second = await freshHome();
  // Each with a port of its own: both are this machine.
  const on = async ({ folder, home }: Home, commands: string) => {
    const text = commands.replace(/(network (create|join))/g, '$1 --listen 127.0.0.1:0');
    const script = `hypermesh() { "$NODE" "$COMMAND" "$@"; }\n${text}`;
    const env = { PATH: process.env['PATH'], HYPERMESH_HOME: home, NODE: process.execPath, COMMAND };
    return (await run('sh', ['-ec', script], { cwd: folder, env })).stdout;
  };
  const [here, there] = block!.text.split('\n\n') as [string, string];
  await on(
    first,
    'hypermesh new wasm it --name hello/greeter && hypermesh up --detach && hypermesh publish it && hypermesh down',
  );
  const [invite] = /hmi1[a-z2-7]+/.exec(await on(first, here))!;
  const said = await on(second, there.replace('hmi1…', invite));
  assert.match(said, /This home is a member now[\s\S]*1 package installed[\s\S]* alive /);
});

for (const example of all) {
  if (!/^(ts|js)$/.test(example.language) || !/from 'hypermesh(\/extension)?'/.test(example.text)) continue;
  test(`the program at ${example.page}:${example.line} runs`, async () => {
    await using folder = await temporaryFolder();
    const output = await runProgram(example, folder.path);
    if (example.page === 'README.md') assert.match(output, /Ada/);
    // What an example says in a comment behind a call of console.log is what it prints.
    for (const [, printed] of example.text.matchAll(/^console\.log\(.*\); \/\/ (.*)$/gm)) {
      assert.ok(output.includes(printed!), `expected ${printed}, but it printed ${output}`);
    }
  });
}

/** Runs an example as it stands, in a folder that has what the pages take for granted: `./my-package` and the extension of the guide. */
async function runProgram({ text }: Example, folder: string): Promise<string> {
  await cp(join(PROJECT, 'templates', 'wasm'), join(folder, 'my-package'), { recursive: true });
  const guide = all.filter(({ page }) => page === 'docs/extensions.md');
  await mkdir(join(folder, 'counter'));
  await writeFile(join(folder, 'counter', 'index.mjs'), guide.find(({ language }) => language === 'js')!.text);
  await writeFile(join(folder, 'counter', 'extension.json'), guide.find(({ language }) => language === 'json')!.text);
  // The package, with homes below this folder and a network whose proofs are cheap.
  const installed = join(folder, 'node_modules', 'hypermesh');
  await mkdir(installed, { recursive: true });
  const exports = { '.': './index.mjs', './extension': './extension.mjs' };
  await writeFile(join(installed, 'package.json'), JSON.stringify({ name: 'hypermesh', exports }));
  const source = (...path: string[]) => JSON.stringify(pathToFileURL(join(PROJECT, 'src', ...path)));
  await writeFile(join(installed, 'extension.mjs'), `export * from ${source('capabilities', 'index.ts')};`);
  await writeFile(
    join(installed, 'index.mjs'),
    `import * as product from ${source('index.ts')};
export * from ${source('index.ts')};
export const HyperMesh = {
  create: (config) =>
    product.HyperMesh.create({ network: ${JSON.stringify(SMALL_NETWORK)}, ...config, home: ${JSON.stringify(folder)} + config.home }),
};
`,
  );
  await writeFile(join(folder, 'example.mts'), text);
  const { stdout } = await run(process.execPath, ['example.mts'], { cwd: folder });
  return stdout;
}
