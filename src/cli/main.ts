import { readFileSync } from 'node:fs';
import { findPackageJSON } from 'node:module';
import { Command, CommanderError } from 'commander';
import { ERRORS, EXIT, HyperMeshError, isCoded, storageError, toProblem } from '../base/errors.ts';
import type { Flags } from '../config.ts';
import type { CommandSpec, Outcome } from './command.ts';
import { COMMANDS, GROUPS } from './commands.ts';
import { json as jsonText, plain } from './terminal.ts';

/** The command line. Sets the exit status of the process; never throws. */
export async function main(argv: readonly string[]): Promise<void> {
  minding(process.stdout, process.stderr);
  const json = argv.includes('--json');
  const words = argv.length === 0 ? ['--help'] : argv;
  let explained = '';
  const program = createProgram((text) => {
    explained += text;
  });
  try {
    await program.parseAsync(words, { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) {
      const version = error.code === 'commander.version';
      print(
        { data: version ? { version: error.message } : { help: explained }, text: version ? error.message : explained },
        json,
      );
      return;
    }
    process.exitCode = report(error instanceof CommanderError ? usageError(error, argv) : error, json);
  }
}

const HELP = ['help [command]', 'Explain a command.'] as const;

/** The whole command tree without its code: each command loads its own when it runs. What it explains goes to `writeOut`. */
export function createProgram(writeOut: (text: string) => void = () => undefined): Command {
  const program = new Command('hypermesh')
    .description('Publish, find, install, verify and run packages without a central registry.')
    .configureHelp({
      sortSubcommands: false,
      // Every command takes options; saying so each time would leave less room for what they do.
      subcommandTerm: (command) => `${command.name()} ${command.usage().replace('[options]', '').trim()}`.trimEnd(),
    })
    .configureOutput({ writeOut, writeErr: () => undefined })
    .showHelpAfterError(false)
    .exitOverride()
    // The last commands have the one that explains among them.
    .commandsGroup(`${COMMANDS.findLast(({ heading }) => heading !== undefined)!.heading}:`)
    .helpCommand(...HELP)
    .helpOption('-h, --help', 'Explain the command.')
    .option('-V, --version', 'Print the version.')
    .addHelpText(
      'after',
      `
First steps:
  hypermesh up --detach
  hypermesh new wasm hello --name hello/greeter
  hypermesh publish hello
  hypermesh install hello/greeter --to here
  hypermesh run hello/greeter --input '{"name": "Ada"}'
`,
    );
  program.on('option:version', () => {
    const { version } = JSON.parse(readFileSync(findPackageJSON(import.meta.url)!, 'utf8')) as { version: string };
    throw new CommanderError(0, 'commander.version', version);
  });
  shared(program);
  const groups = new Map<string, Command>();
  for (const spec of COMMANDS) {
    const [first, second] = spec.name.split(' ') as [string, string | undefined];
    if (spec.heading !== undefined) program.commandsGroup(`${spec.heading}:`);
    if (second === undefined) {
      define(program, first, spec);
      continue;
    }
    let group = groups.get(first);
    if (group === undefined) {
      group = shared(
        program
          .command(first)
          .description(GROUPS[first]!)
          .helpCommand(...HELP),
      );
      groups.set(first, group);
    }
    define(group, second, spec);
  }
  return program;
}

/** Options that every command understands, before or after its name. */
function shared(command: Command): Command {
  return command
    .option('--home <dir>', 'Folder of the node; default: HYPERMESH_HOME, else ~/.hypermesh.')
    .option('--passphrase-file <file>', 'File with the passphrase of the key store.')
    .option('--json', 'One JSON document on standard output.')
    .option('-v, --verbose', 'Progress as lines, also without a terminal.');
}

function define(parent: Command, name: string, spec: CommandSpec): void {
  const command = shared(
    parent.command(spec.args === undefined ? name : `${name} ${spec.args}`, { isDefault: spec.isDefault === true }),
  )
    .description(spec.summary)
    .addHelpText('after', `\nExample:\n  ${spec.example}`);
  for (const [flags, description] of spec.options ?? []) command.option(flags, description);
  command.action(async (...args: unknown[]) => {
    // Commander appends the options and the command itself.
    const values = args.slice(0, -1);
    await execute(spec, command.optsWithGlobals(), values);
  });
}

type GlobalOptions = Flags & { readonly json?: boolean; readonly verbose?: boolean };

async function execute(spec: CommandSpec, options: GlobalOptions, args: unknown[]): Promise<void> {
  const { createContext } = await import('./context.ts');
  using context = createContext(options);
  const outcome = await spec.run(context, ...(args as never[]));
  context.endProgress();
  if (outcome === undefined) return;
  print(outcome, options.json === true);
  process.exitCode = outcome.exit ?? EXIT.ok;
}

function print(outcome: Outcome, json: boolean): void {
  if (json) process.stdout.write(`${jsonText(outcome.data)}\n`);
  else if (outcome.text !== '') process.stdout.write(outcome.text.endsWith('\n') ? outcome.text : `${outcome.text}\n`);
}

/** Prints the error where its reader expects it; returns the exit status. */
function report(error: unknown, json: boolean): number {
  const problem = toProblem(error);
  if (!isCoded(error)) console.error(error);
  if (json) process.stdout.write(`${jsonText({ error: problem })}\n`);
  else {
    console.error(`Error: ${plain(problem.message)} (${problem.code})`);
    if (problem.hint !== undefined) console.error(`Hint: ${plain(problem.hint)}`);
  }
  return ERRORS[problem.code].exit;
}

/** Says in our words what the parser refused, and how the command is called that was meant. */
function usageError(error: CommanderError, argv: readonly string[]): HyperMeshError {
  const names = COMMANDS.map(({ name }) => name);
  const known = new Set([...names.map((name) => name.split(' ')[0]), 'help']);
  const words = argv
    .slice(
      Math.max(
        0,
        argv.findIndex((word) => known.has(word)),
      ),
    )
    .filter((word) => !word.startsWith('-'));
  const group = words.find((word) => Object.hasOwn(GROUPS, word));
  const inGroup = names.filter((name) => name.split(' ')[0] === group);
  const spec = COMMANDS.find(({ name }) => `${words.join(' ')} `.startsWith(`${name} `));
  const hint =
    spec !== undefined
      ? `Usage: hypermesh ${spec.name}${spec.args === undefined ? '' : ` ${spec.args}`}; --help explains it.`
      : group !== undefined
        ? `Commands of this group: ${inGroup.join(', ')}.`
        : '`hypermesh --help` lists the commands.';
  const unknown = error.code === 'commander.excessArguments' && spec === undefined;
  const message =
    unknown || (error.code === 'commander.help' && words[0] === 'help')
      ? `Unknown command '${words.slice(words[0] === 'help' ? 1 : 0).join(' ')}'.`
      : error.code === 'commander.help'
        ? 'Expected a command.'
        : error.message
            .replace(/^error: /, '')
            .replace(/\n\((.*)\)$/, '. $1')
            .replace(/[^.?]$/, '$&.');
  return new HyperMeshError('usage', message.charAt(0).toUpperCase() + message.slice(1), { hint });
}

/**
 * `hypermesh list | head` ends quietly when head has seen enough; an answer that finds no room on the disk is a failure. Whoever does not look at
 * progress any more stops nothing.
 */
function minding(stdout: NodeJS.WriteStream, stderr: NodeJS.WriteStream): void {
  stderr.on('error', () => undefined);
  stdout.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? EXIT.ok : report(storageError(error, 'writing the answer'), false));
  });
}
