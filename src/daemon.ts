import process from 'node:process';
import { isCoded, type ProblemDocument, toProblem } from './base/errors.ts';
import { createLog } from './base/log.ts';
import type { Loaded } from './config.ts';
import { openLogFile } from './log-file.ts';
import { startNode } from './main.ts';

/**
 * The node of `hypermesh up --detach`: a process of its own session. Its configuration and secrets come through the channel to the
 * command that started it, never through arguments or the environment, where other programs could read them.
 */
process.once('message', (loaded: Loaded & { readonly logFile: string }) => {
  void run(loaded);
});

/** The command that started us listens until it knows how that went. */
function tell(message: { readonly started: object } | { readonly error: ProblemDocument }): void {
  if (process.connected) process.send?.(message);
}

async function run({ logFile, ...loaded }: Loaded & { readonly logFile: string }): Promise<void> {
  try {
    using destination = openLogFile(logFile);
    const log = createLog({ level: loaded.config.logLevel, destination });
    const { promise: signalled, resolve } = Promise.withResolvers<void>();
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => resolve());
    await using node = await startNode(loaded, { log, announce: true });
    log.info({ http: node.http, home: node.home, pid: process.pid }, 'started');
    tell({ started: { http: node.http, pid: process.pid, home: node.home, problem: node.problem } });
    await Promise.race([node.stopAsked, signalled]);
    log.info({}, 'stopping');
  } catch (error) {
    // What is coded reaches a person through the command; a defect goes to the crash log.
    if (!isCoded(error) || !process.connected) console.error(error);
    tell({ error: toProblem(error) });
    process.exitCode = 1;
  } finally {
    if (process.connected) process.disconnect?.();
  }
}
