import wabt from 'wabt';

const tools = wabt();

/** Assembles WebAssembly text. `features` turns on proposals of WABT, also to write modules that the sandbox refuses. */
export async function assemble(
  text: string,
  features: Readonly<Record<string, boolean>> = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const parsed = (await tools).parseWat('module.wat', text, features);
  try {
    return new Uint8Array(parsed.toBinary({}).buffer);
  } finally {
    parsed.destroy();
  }
}
