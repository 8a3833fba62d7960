import { utf8 } from '../../base/bytes.ts';
import { HyperMeshError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import type { RunRequest, SandboxPolicy } from '../../capabilities/vm.ts';
import type { ExecutionLimits } from './limits.ts';
import type { BoxSpec } from './process/box.ts';

/** What every runtime asks of a request before it looks at the program. */

/** A request with what the owner granted of what it asks for, found and opened; it is there for this run only. */
export interface OpenedRequest extends RunRequest {
  readonly openings?: Pick<BoxSpec, 'folders' | 'sockets'>;
}

/** The input as a program reads it on its standard input. Errors: `limit-exceeded`. */
export function encodeInput(input: Json, { inputBytesMax }: Pick<ExecutionLimits, 'inputBytesMax'>): Uint8Array {
  const bytes = utf8(JSON.stringify(input));
  if (bytes.length <= inputBytesMax) return bytes;
  throw new HyperMeshError(
    'limit-exceeded',
    `The input has ${bytes.length} bytes as JSON; at most ${inputBytesMax} are passed to a program.`,
    { hint: 'Put large data into a package that the program depends on.' },
  );
}

/** For runtimes that cannot count instructions. Errors: `policy-refused`. */
export function refuseFuel({ fuel }: SandboxPolicy, language: string): void {
  if (fuel === undefined) return;
  throw new HyperMeshError(
    'policy-refused',
    `Nothing counts the instructions of a ${language} program: it cannot be given fuel.`,
    { hint: 'Limit the time of the run, or run a package of language wasm.' },
  );
}
