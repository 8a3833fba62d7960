# Runs one program. ARGS: its path, the number of its environment variables, these as NAME=value, its arguments. Descriptor 3 leads to
# the node, and says only that a file is no program; it is closed before the program starts.
module HyperMeshWorker

Base.Experimental.@optlevel 0

using Main.HyperMeshJson: read_json, write_json

const TRACE_MAX = 40

function run(path::String, environment::Vector{String})
    invalid = syntax_error(path)
    invalid === nothing || refuse(invalid)
    ccall(:close, Cint, (Cint,), 3)
    Core.eval(Base, :(PROGRAM_FILE = $path))
    for name in collect(keys(ENV))
        delete!(ENV, name)
    end
    for variable in environment
        name, value = split(variable, '='; limit = 2)
        ENV[name] = value
    end
    cd("/")
    try
        Base.include(Main, path)
        Base.invokelatest(finish)
    catch error
        complain(error, catch_backtrace())
        exit(1)
    end
    exit(0)
end

"What the parser says of the first expression that is none, or nothing."
function syntax_error(path::String)
    text = try
        read(path, String)
    catch error
        return sprint(showerror, error)
    end
    isvalid(text) || return "$path is not UTF-8"
    tree = Base.parse_input_line(text; filename = path)
    tree isa Expr || return nothing
    wrong = tree.head === :toplevel ? filter(part -> part isa Expr && part.head in (:error, :incomplete), tree.args) :
        tree.head in (:error, :incomplete) ? Any[tree] : Any[]
    isempty(wrong) && return nothing
    says = wrong[1].args[1]
    return string(says isa AbstractString ? says : sprint(showerror, says))
end

function refuse(message::String)
    document = sprint(io -> write_json(io, Dict("invalid" => first(message, 2_000))))
    bytes = Vector{UInt8}(codeunits(document))
    while !isempty(bytes)
        written = ccall(:write, Cssize_t, (Cint, Ptr{UInt8}, Csize_t), 3, bytes, length(bytes))
        written > 0 || break
        bytes = bytes[written+1:end]
    end
    exit(0)
end

"A program that defines `main(input)` is a function of its input: what it prints is its log, what it returns its result."
function finish()
    isdefined(Main, :main) || return
    main = Main.main
    main isa Function && hasmethod(main, Tuple{Any}) || return
    input = read_json(read(stdin))
    result = stdout
    value = try
        redirect_stdout(stderr)
        main(input)
    finally
        flush(stderr)
        redirect_stdout(result)
    end
    document = sprint(io -> write_json(io, value))
    write(result, document)
    flush(result)
end

"As `showerror` with a backtrace, but for a quarter of its time, which is that of compiling it."
function complain(@nospecialize(error), trace)
    while error isa LoadError
        error = error.error
    end
    showerror(stderr, error)
    for (count, frame) in enumerate(stacktrace(trace))
        # Here the worker begins, which was given on the command line.
        (count > TRACE_MAX || frame.file in (:none, Symbol("./none"))) && break
        print(stderr, "\n  at ", string(frame.func), " (", string(frame.file), ":", string(frame.line), ")")
    end
    println(stderr)
end

end

let path = string("/package/", popfirst!(ARGS)), count = parse(Int, popfirst!(ARGS))
    HyperMeshWorker.run(path, String[popfirst!(ARGS) for _ in 1:count])
end
