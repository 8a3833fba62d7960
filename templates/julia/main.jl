# What `main` returns is the result, what it prints is the log.
using Statistics

function main(input)
    numbers = Float64.(input["numbers"])
    println("$(length(numbers)) numbers came")
    return (mean = mean(numbers), median = median(numbers))
end
