import type { CommandSpec } from './command.ts';

/** Groups of commands, such as `hypermesh state export`. */
export const GROUPS: Readonly<Record<string, string>> = {
  cert: 'Certificates of this home.',
  grants: 'What packages may use of this machine beyond their box.',
  network: 'A network of several machines.',
  peers: 'Other nodes of the network.',
  proof: 'The four proofs: space, stake, work, time.',
  runtime: 'Languages that this node can run.',
  stake: 'Tokens of this home.',
  state: 'Save and restore the state of a node.',
};

const MANIFEST = ['--manifest <file>', 'Used instead of catalog.yaml in the folder.'] as const;
const TO = ['--to <dir>', 'Folder of the installation; default: the one of the node.'] as const;

/** Every command, in the order of `hypermesh --help`. */
export const COMMANDS: readonly CommandSpec[] = [
  {
    name: 'up',
    heading: 'A node',
    summary: 'Start the node of this home.',
    options: [
      ['--detach', 'Leave it running in the background.'],
      ['--http <addr>', 'Address of the API and the status page, for example 127.0.0.1:4000.'],
      ['--log-level <level>', 'silent, error, warn, info or debug.'],
    ],
    example: 'hypermesh up --detach --http 127.0.0.1:4000',
    run: async (context, options: { detach?: boolean }) => (await import('./commands/up.ts')).up(context, options),
  },
  {
    name: 'down',
    summary: 'Stop the node of this home and wait until it has ended.',
    example: 'hypermesh down',
    run: async (context) => (await import('./commands/up.ts')).down(context),
  },
  {
    name: 'status',
    summary: 'Show the node of this home.',
    example: 'hypermesh status --json',
    run: async (context) => (await import('./commands/status.ts')).status(context),
  },
  {
    name: 'doctor',
    summary: 'Check what a node needs on this machine, and say how to mend what is missing.',
    example: 'hypermesh doctor',
    run: async (context) => (await import('./commands/doctor.ts')).doctor(context),
  },
  {
    name: 'new',
    heading: 'Your packages',
    summary: 'Make a package from a template: wasm, julia, python, library, container or virtual-machine.',
    args: '<template> <dir>',
    options: [['--name <scope/name>', 'Name of the package; default: made from the name of the folder.']],
    example: 'hypermesh new wasm greeter --name ada/greeter',
    run: async (context, template: string, dir: string, options: { name?: string }) =>
      (await import('./commands/new.ts')).create(context, template, dir, options),
  },
  {
    name: 'pack',
    summary: 'Write a package folder to one file, without a node.',
    args: '<dir>',
    options: [MANIFEST, ['--out <file>', 'The file to write; default: SCOPE-NAME-VERSION.hmp in the working folder.']],
    example: 'hypermesh pack ./greeter --out greeter.hmp',
    run: async (context, dir: string, options: { out?: string; manifest?: string }) =>
      (await import('./commands/publish.ts')).pack(context, dir, options),
  },
  {
    name: 'publish',
    summary: 'Publish a package folder or a packed file: sign, prove, admit, commit.',
    args: '<dir|file>',
    options: [MANIFEST, ['--bundle <file>', 'Also write the verification bundle to this file.']],
    example: 'hypermesh publish ./greeter --bundle greeter.bundle.json',
    run: async (context, source: string, options: { bundle?: string; manifest?: string }) =>
      (await import('./commands/publish.ts')).publish(context, source, options),
  },
  {
    name: 'deprecate',
    summary: 'Advise against a version.',
    args: '<ref>',
    options: [
      ['--reason <text>', 'Why, and what to use instead.'],
      ['--undo', 'Take the advice back.'],
    ],
    example: 'hypermesh deprecate ada/greeter@1.0.0 --reason "use 2.x"',
    run: async (context, ref: string, options: { reason?: string; undo?: boolean }) =>
      (await import('./commands/retire.ts')).mark(context, ref, 'deprecated', options),
  },
  {
    name: 'yank',
    summary: 'Take a version out of search and resolution; locked installations keep it.',
    args: '<ref>',
    options: [
      ['--reason <text>', 'Why.'],
      ['--undo', 'Take it back: the version is found and chosen again.'],
    ],
    example: 'hypermesh yank ada/greeter@1.0.1 --reason "wrong default"',
    run: async (context, ref: string, options: { reason?: string; undo?: boolean }) =>
      (await import('./commands/retire.ts')).mark(context, ref, 'yanked', options),
  },
  {
    name: 'delete',
    summary: 'Delete a version that nothing depends on.',
    args: '<ref>',
    example: 'hypermesh delete ada/greeter@1.0.0',
    run: async (context, ref: string) => (await import('./commands/retire.ts')).remove(context, ref),
  },
  {
    name: 'search',
    heading: 'Packages of everybody',
    summary: 'Find packages.',
    args: '[query...]',
    options: [
      ['--type <type>', 'Only this type, for example library.'],
      ['--language <language>', 'Only packages run by this runtime.'],
      ['--keyword <word>', 'Only packages with this keyword.'],
      ['--owner <key-id>', 'Only packages of this publisher.'],
      ['--license <id>', 'Only packages under this licence.'],
      ['--yanked', 'Also yanked versions.'],
      ['--limit <n>', 'Results on a page, 1 to 100.'],
      ['--cursor <cursor>', 'The next page, as printed under the one before.'],
    ],
    example: 'hypermesh search greeting --language wasm',
    run: async (context, words: string[], options: Record<string, string>) =>
      (await import('./commands/search.ts')).search(context, words, options),
  },
  {
    name: 'info',
    summary: 'Show a package, its versions and what depends on it.',
    args: '<ref>',
    example: 'hypermesh info ada/greeter@^1.0.0',
    run: async (context, ref: string) => (await import('./commands/search.ts')).info(context, ref),
  },
  {
    name: 'install',
    summary: 'Install packages and what they depend on, verified.',
    args: '[refs...]',
    options: [TO, ['--locked', 'Exactly what the lock file in the folder says, or refuse.']],
    example: 'hypermesh install ada/greeter@^1.2.0 --to ./packages',
    run: async (context, refs: string[], options: { to?: string; locked?: boolean }) =>
      (await import('./commands/install.ts')).install(context, refs, options),
  },
  {
    name: 'list',
    summary: 'Show what is installed.',
    options: [TO],
    example: 'hypermesh list --to ./packages',
    run: async (context, options: { to?: string }) => (await import('./commands/install.ts')).list(context, options),
  },
  {
    name: 'update',
    summary: 'Move installed packages to the newest versions in their ranges.',
    args: '[names...]',
    options: [TO],
    example: 'hypermesh update --to ./packages',
    run: async (context, names: string[], options: { to?: string }) =>
      (await import('./commands/install.ts')).update(context, names, options),
  },
  {
    name: 'uninstall',
    summary: 'Take packages out of an installation, and what only they needed.',
    args: '<names...>',
    options: [TO],
    example: 'hypermesh uninstall ada/greeter --to ./packages',
    run: async (context, names: string[], options: { to?: string }) =>
      (await import('./commands/install.ts')).uninstall(context, names, options),
  },
  {
    name: 'rollback',
    summary: 'Undo the last change of an installation.',
    options: [TO],
    example: 'hypermesh rollback --to ./packages',
    run: async (context, options: { to?: string }) =>
      (await import('./commands/install.ts')).rollback(context, options),
  },
  {
    name: 'run',
    summary: 'Run a package in a sandbox: JSON in, JSON out. Exits with 9 when the program fails.',
    args: '<ref> [args...]',
    options: [
      ['--input <json>', 'JSON, or @FILE, or - for standard input.'],
      ['--env <name=value...>', 'Environment variables that the package allows.'],
      ['--memory <size>', 'At most this much memory, for example 64MiB.'],
      ['--timeout <seconds>', 'At most this long.'],
      ['--cpus <n>', 'At most this many processors, for example 0.5.'],
      ['--disk <size>', 'At most this much in /tmp, for example 16MiB.'],
      ['--output <size>', 'At most this much on standard output and error together.'],
      ['--fuel <n>', 'At most so many instructions; of WebAssembly, where they are counted.'],
      ['--allow <what...>', 'HOST:PORT or NAME=FOLDER that the package asks for; remembered for this version.'],
    ],
    example: `hypermesh run hello/greeter --input '{"name":"Ada"}'`,
    run: async (context, ref: string, args: string[], options: Record<string, string>) =>
      (await import('./commands/run.ts')).run(context, ref, args, options),
  },
  {
    name: 'grants list',
    isDefault: true,
    summary: 'Show what packages were granted: places on the network, folders.',
    example: 'hypermesh grants list',
    run: async (context) => (await import('./commands/grants.ts')).list(context),
  },
  {
    name: 'grants revoke',
    summary: 'Take back what a package was granted, or one place or folder of it.',
    args: '<ref> [what]',
    example: 'hypermesh grants revoke ada/fetcher api.example.org:443',
    run: async (context, ref: string, what: string | undefined) =>
      (await import('./commands/grants.ts')).revoke(context, ref, what),
  },
  {
    name: 'verify',
    summary: 'Check a published package, or a bundle file; offline it needs nothing but the file.',
    args: '<ref|file|digest>',
    options: [
      ['--offline', 'Use only the bundle: no node, no content, no network.'],
      ['--genesis <digest>', 'The network that the bundle must belong to.'],
    ],
    example: 'hypermesh verify greeter.bundle.json --offline',
    run: async (context, target: string, options: { offline?: boolean; genesis?: string }) =>
      (await import('./commands/verify.ts')).verify(context, target, options),
  },
  {
    name: 'bundle',
    summary: 'Write the verification bundle of a package to a file.',
    args: '<ref> [file]',
    example: 'hypermesh bundle ada/greeter greeter.bundle.json',
    run: async (context, ref: string, file?: string) =>
      (await import('./commands/verify.ts')).bundle(context, ref, file),
  },
  {
    name: 'keys',
    heading: 'Identity and proofs',
    summary: 'Show the public identity of this home.',
    example: 'hypermesh keys',
    run: async (context) => (await import('./commands/trust.ts')).keys(context),
  },
  {
    name: 'passphrase',
    summary: 'Give the keys of this home another passphrase. The node must not be running.',
    options: [['--new-passphrase-file <file>', 'File with the new passphrase; without it a terminal asks.']],
    example: 'hypermesh passphrase --passphrase-file ./old --new-passphrase-file ./new',
    run: async (context, options: { newPassphraseFile?: string }) =>
      (await import('./commands/passphrase.ts')).passphrase(context, options),
  },
  {
    name: 'cert list',
    isDefault: true,
    summary: 'List certificates.',
    example: 'hypermesh cert list',
    run: async (context) => (await import('./commands/trust.ts')).certificates(context),
  },
  {
    name: 'cert renew',
    summary: 'Issue a fresh certificate for the same keys: of the publisher, the validator or the node.',
    args: '<role>',
    example: 'hypermesh cert renew publisher',
    run: async (context, role: string) => (await import('./commands/trust.ts')).renew(context, role),
  },
  {
    name: 'cert revoke',
    summary: 'Revoke a certificate for good.',
    args: '<fingerprint>',
    options: [['--reason <reason>', 'key-compromise, superseded or cessation-of-operation.']],
    example: 'hypermesh cert revoke 2f5bb5f96e884670367300a00065de4ac999cac322bd864187092bc37e64f0d6',
    run: async (context, fingerprint: string, options: { reason?: string }) =>
      (await import('./commands/trust.ts')).revoke(context, fingerprint, options),
  },
  {
    name: 'proof init',
    summary: 'Make the space commitment of this home and register it, or wait until that is done.',
    example: 'hypermesh proof init',
    run: async (context) => (await import('./commands/proof.ts')).proofInit(context),
  },
  {
    name: 'proof status',
    isDefault: true,
    summary: 'Show the space commitment and what each operation needs.',
    example: 'hypermesh proof status',
    run: async (context) => (await import('./commands/proof.ts')).proofStatus(context),
  },
  {
    name: 'proof make',
    summary: 'Make the proofs for an operation (publish, install, execute or default), without submitting them.',
    args: '<kind> <digest> [file]',
    options: [['--ref <ref>', 'For kind publish: scope/name@version.']],
    example:
      'hypermesh proof make default sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 proofs.json',
    run: async (context, kind: string, digest: string, file: string | undefined, options: { ref?: string }) =>
      (await import('./commands/proof.ts')).proofMake(context, kind, digest, file, options),
  },
  {
    name: 'proof verify',
    summary: 'Judge each proof in a file of proofs or in a bundle.',
    args: '<file>',
    example: 'hypermesh proof verify proofs.json',
    run: async (context, file: string) => (await import('./commands/proof.ts')).proofVerify(context, file),
  },
  {
    name: 'stake show',
    isDefault: true,
    summary: 'Show the account of this home.',
    example: 'hypermesh stake show',
    run: async (context) => (await import('./commands/proof.ts')).stakeShow(context),
  },
  {
    name: 'stake lock',
    summary: 'Lock tokens, so that they count for proofs.',
    args: '<amount>',
    example: 'hypermesh stake lock 1000',
    run: async (context, amount: string) => (await import('./commands/proof.ts')).stakeChange(context, 'lock', amount),
  },
  {
    name: 'stake unlock',
    summary: 'Unlock tokens: they are free a week later.',
    args: '<amount>',
    example: 'hypermesh stake unlock 1000',
    run: async (context, amount: string) =>
      (await import('./commands/proof.ts')).stakeChange(context, 'unlock', amount),
  },
  {
    name: 'stake transfer',
    summary: 'Give tokens to another account.',
    args: '<account> <amount>',
    example: 'hypermesh stake transfer 5fbd751770b41587d790452f6a3ead01292e09724599e83fdf13f9cfe9db43e6 250',
    run: async (context, account: string, amount: string) =>
      (await import('./commands/proof.ts')).stakeChange(context, 'transfer', amount, account),
  },
  {
    name: 'network show',
    heading: 'Other machines',
    isDefault: true,
    summary: 'Show the place of this home in its network.',
    example: 'hypermesh network show',
    run: async (context) => (await import('./commands/network.ts')).show(context),
  },
  {
    name: 'network create',
    summary: "Open this home's own network to others.",
    options: [
      ['--listen <addr>', 'Where other machines reach this one; default: every address, port 9292.'],
      ['--open', 'Also to those without an invite: see network open.'],
    ],
    example: 'hypermesh network create --listen 192.0.2.7:9292',
    run: async (context, options: { listen?: string; open?: boolean }) =>
      (await import('./commands/network.ts')).create(context, options),
  },
  {
    name: 'network open',
    summary: "Let anybody into this home's network without an invite, within bounds; prints what they join with.",
    options: [
      ['--members <n>', 'How many of the members may have come so; default: 1000.'],
      ['--per-hour <n>', 'How many may come within an hour; default: 60.'],
      ['--per-address <n>', 'How many of these from one address; default: 6.'],
      [
        '--work <digits>',
        'Work that each has to do, 16 times as much for each digit; default: 6, some seconds; at most 7.',
      ],
    ],
    example: 'hypermesh network open --members 200 --per-address 2',
    run: async (context, options: { members?: string; perHour?: string; perAddress?: string; work?: string }) =>
      (await import('./commands/network.ts')).open(context, options),
  },
  {
    name: 'network close',
    summary: 'Ask everybody for an invite again; who is in stays.',
    example: 'hypermesh network close',
    run: async (context) => (await import('./commands/network.ts')).close(context),
  },
  {
    name: 'network invite',
    summary: 'Make an invite: one line that lets one other machine in, once.',
    options: [
      ['--expires <time>', 'How long it is good, for example 30m, 24h (the default) or 7d; at most 30d.'],
      ['--address <addr...>', 'Where this machine is reached, when it does not know by itself.'],
      ['--tokens <n>', 'Tokens that who joins is given, locked; default: as many as publishing needs.'],
    ],
    example: 'hypermesh network invite --expires 7d --address catalog.example.org:9292',
    run: async (context, options: { expires?: string; address?: string[]; tokens?: string }) =>
      (await import('./commands/network.ts')).invite(context, options),
  },
  {
    name: 'network join',
    summary: 'Become a member of the network of an invite, or of one that is open; the home keeps its keys.',
    args: '<invite>',
    options: [
      ['--listen <addr>', 'Where other machines reach this one; default: every address, port 9292.'],
      ['--forget', 'Drop the packages that this home holds; without it a home with packages is refused.'],
    ],
    example: 'hypermesh network join hmi1cei… --listen 192.0.2.8:9292',
    run: async (context, text: string, options: { listen?: string; forget?: boolean }) =>
      (await import('./commands/network.ts')).join(context, text, options),
  },
  {
    name: 'network members',
    summary: 'List who belongs to the network, and who did.',
    example: 'hypermesh network members',
    run: async (context) => (await import('./commands/network.ts')).members(context),
  },
  {
    name: 'network validators',
    summary: 'Show who sits in the committee; with add, remove, proposals or approve: who sits in the next one.',
    args: '[action] [nodes...]',
    options: [
      [
        '--instead',
        'Although this validator approved another change, when it is certain that that one will not come about.',
      ],
    ],
    example: 'hypermesh network validators add 2f5bb5f96e884670367300a00065de4ac999cac322bd864187092bc37e64f0d6',
    run: async (context, action: string | undefined, nodes: string[], options: { instead?: boolean }) =>
      (await import('./commands/network.ts')).validators(context, action, nodes, options),
  },
  {
    name: 'network epoch',
    summary: 'Show which committee votes now, since when, and by what that is known.',
    example: 'hypermesh network epoch --json',
    run: async (context) => (await import('./commands/network.ts')).epoch(context),
  },
  {
    name: 'network sequencer',
    summary: 'Show where the order of names, tokens and committees is made, or approve that it is made elsewhere.',
    args: '[endpoints...]',
    options: [
      ['--to-etcd', 'In the cluster of etcd with these endpoints (https://HOST:PORT).'],
      ['--to-home [validator]', 'In the home of that validator; in this one when no key id is given.'],
      ['--recover', 'Although the engine that made it is lost for good: after everything that was certified.'],
    ],
    example:
      'hypermesh network sequencer --to-etcd https://192.0.2.1:2379 https://192.0.2.2:2379 https://192.0.2.3:2379',
    run: async (
      context,
      endpoints: string[],
      options: { toEtcd?: boolean; toHome?: string | true; recover?: boolean },
    ) => (await import('./commands/network.ts')).sequencer(context, endpoints, options),
  },
  {
    name: 'network leave',
    summary: 'Go back to a network of its own, with the same keys.',
    options: [['--forget', 'Drop the packages of the network from this home.']],
    example: 'hypermesh network leave --forget',
    run: async (context, options: { forget?: boolean }) =>
      (await import('./commands/network.ts')).leave(context, options),
  },
  {
    name: 'network remove',
    summary: 'Take the certificates of a member back.',
    args: '<node>',
    options: [['--compromised', 'Its keys were stolen: nothing that they ever signed counts any more.']],
    example: 'hypermesh network remove 2f5bb5f96e884670367300a00065de4ac999cac322bd864187092bc37e64f0d6',
    run: async (context, node: string, options: { compromised?: boolean }) =>
      (await import('./commands/network.ts')).remove(context, node, options),
  },
  {
    name: 'network audit',
    summary: 'Look for certified statements that contradict each other, in files or in what the node holds.',
    args: '[files...]',
    options: [['--genesis <digest>', 'Only this network.']],
    example: 'hypermesh network audit bundles/*.json transcript.jsonl',
    run: async (context, files: string[], options: { genesis?: string }) =>
      (await import('./commands/audit.ts')).audit(context, files, options),
  },
  {
    name: 'peers list',
    isDefault: true,
    summary: 'List the other nodes of the network: where they are, whether they answer, who is banned.',
    options: [['--discover', 'Ask others whom they know first.']],
    example: 'hypermesh peers list --discover',
    run: async (context, options: { discover?: boolean }) =>
      (await import('./commands/peers.ts')).peers(context, options),
  },
  {
    name: 'peers bans',
    summary: 'List the nodes that this one does not speak to, and why; of one of them, show the evidence.',
    args: '[node]',
    example: 'hypermesh peers bans 2f5bb5f96e884670367300a00065de4ac999cac322bd864187092bc37e64f0d6',
    run: async (context, node?: string) => (await import('./commands/peers.ts')).bans(context, node),
  },
  {
    name: 'peers forgive',
    summary: 'Speak to a banned node again.',
    args: '<node>',
    example: 'hypermesh peers forgive 2f5bb5f96e884670367300a00065de4ac999cac322bd864187092bc37e64f0d6',
    run: async (context, node: string) => (await import('./commands/peers.ts')).forgive(context, node),
  },
  {
    name: 'sync',
    summary: 'Compare records with every other node now, and fetch what is missing.',
    example: 'hypermesh sync',
    run: async (context) => (await import('./commands/peers.ts')).sync(context),
  },
  {
    name: 'distribute',
    summary: 'Wait until as many nodes as a package asks for hold its content.',
    args: '<ref>',
    options: [
      ['--code <k+m>', 'Place k+m fragments in the place of copies, any k of which restore it: 4+2, for example.'],
    ],
    example: 'hypermesh distribute examples/greeter',
    run: async (context, ref: string, options: { code?: string }) =>
      (await import('./commands/peers.ts')).distribute(context, ref, options),
  },
  {
    name: 'runtime list',
    heading: 'Care',
    isDefault: true,
    summary: 'Show what this node can run, and what is missing for the rest.',
    example: 'hypermesh runtime list',
    run: async (context) => (await import('./commands/runtime.ts')).list(context),
  },
  {
    name: 'runtime add',
    summary:
      'Add a language to this node: from verified packages of the distribution, or from a package of the catalog.',
    args: '<language>',
    options: [
      ['--from <ref|file>', 'A package with the image of the language, published or as a file.'],
      ['--digest <digest>', 'What the file must be; needed with a file, which nobody has signed.'],
    ],
    example: 'hypermesh runtime add julia --from runtimes/julia-amd64',
    run: async (context, language: string, options: { from?: string; digest?: string }) =>
      (await import('./commands/runtime.ts')).add(context, language, options),
  },
  {
    name: 'runtime export',
    summary: 'Write a language that was added to a package file, for nodes that cannot reach the distribution.',
    args: '<language>',
    options: [['--out <file>', 'The file to write; default: LANGUAGE.hmp in the working folder.']],
    example: 'hypermesh runtime export julia --out julia.hmp',
    run: async (context, language: string, options: { out?: string }) =>
      (await import('./commands/runtime.ts')).exportImage(context, language, options),
  },
  {
    name: 'runtime remove',
    summary: 'Remove a language that was added.',
    args: '<language>',
    example: 'hypermesh runtime remove julia',
    run: async (context, language: string) => (await import('./commands/runtime.ts')).remove(context, language),
  },
  {
    name: 'state export',
    summary: 'Write the state of the node to a file; - writes to standard output.',
    args: '<file>',
    example: 'hypermesh state export backup.hmstate',
    run: async (context, file: string) => (await import('./commands/state.ts')).exportState(context, file),
  },
  {
    name: 'state import',
    summary: 'Replace the state of the node by an export, verified before anything changes.',
    args: '<file>',
    example: 'hypermesh state import backup.hmstate',
    run: async (context, file: string) => (await import('./commands/state.ts')).importState(context, file),
  },
  {
    name: 'metrics',
    summary: 'Show metrics whose names match a pattern.',
    args: '[pattern]',
    options: [['--prometheus', 'In the text format of Prometheus.']],
    example: "hypermesh metrics 'catalog.*'",
    run: async (context, pattern: string | undefined, options: { prometheus?: boolean }) =>
      (await import('./commands/observe.ts')).metrics(context, pattern, options),
  },
  {
    name: 'events',
    summary: 'Show what happened in the node.',
    args: '[pattern]',
    options: [
      ['--after <sequence>', 'Only events after this one.'],
      ['--follow', 'Go on with what happens from now on, until Ctrl-C.'],
    ],
    example: "hypermesh events 'catalog.*' --follow",
    run: async (context, pattern: string | undefined, options: { after?: string; follow?: boolean }) =>
      (await import('./commands/observe.ts')).events(context, pattern, options),
  },
  {
    name: 'gc',
    summary: 'Remove content that nothing refers to.',
    options: [['--scrub', 'Also re-hash everything that is kept, and set damaged content aside.']],
    example: 'hypermesh gc --scrub',
    run: async (context, options: { scrub?: boolean }) => (await import('./commands/observe.ts')).gc(context, options),
  },
];
